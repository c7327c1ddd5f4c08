"""XML of others: parsed without what makes it large or reads other files. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

from mobilenets.errors import UserError, needed_by

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MOST_XML = 512 << 20  # bytes


def elements(content: bytes, name: str, tags: tuple[str, ...]) -> Iterator[Element]:
    """The elements called so, in order, each forgotten when the next is asked for. Raises `UserError`.

    One inside another of them comes first.
    """
    with needed_by("reading XML"):
        from defusedxml import ElementTree
        from defusedxml.common import DefusedXmlException
    depth, root = 0, None
    try:
        for event, element in ElementTree.iterparse(BytesIO(content), events=("start", "end")):
            if event == "start":
                root = element if root is None else root
                depth += 1
                if depth > 100:
                    raise UserError(f"{name}: XML that is nested over 100 deep")
                continue
            depth -= 1
            if element.tag in tags:
                yield element
                if root is not None and root.tag not in tags:
                    root.clear()
    except DefusedXmlException as e:
        raise UserError(f"{name}: XML that defines entities, which annotations don't: {str(e)[:100]}") from e
    except (ElementTree.ParseError, LookupError, ValueError) as e:
        raise UserError(f"{name}: not readable as XML: {str(e)[:200]}") from e


def text(element: Any, tag: str) -> str:
    """What stands in an element's child; nothing where there is none."""
    return (element.findtext(tag) or "").strip()
