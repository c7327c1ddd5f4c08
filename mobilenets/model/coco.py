"""The 80 categories of COCO's detection task and their ids, which have gaps (cocodataset.org, 2014). No torch."""

from __future__ import annotations

# By id from 1 on, as the annotations have them; "-" of an id that no annotation has.
_BY_ID = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, -, backpack,
umbrella, -, -, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, -, dining table, -, -, toilet,
-, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, -, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush"""

BY_ID: tuple[str | None, ...] = tuple(None if n == "-" else n for n in " ".join(_BY_ID.split()).split(", "))
"""Names by id, from id 1 on; None where there is no such category."""

IDS: dict[str, int] = {name: i for i, name in enumerate(BY_ID, 1) if name}
"""The id of each of the 80 categories, in the order of ids."""
