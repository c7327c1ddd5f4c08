"""What is shown: figures, pages, the papers' tables, explanations."""

import logging

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its fonts is no concern of our users
