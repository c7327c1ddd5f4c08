"""Detection: which objects an image has, and where. A folder of small parts; `detector.TASK` is what the rest asks."""
