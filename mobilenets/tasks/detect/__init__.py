"""Detection: which objects an image has, and where. A folder of small parts; `task.TASK` is what the rest asks."""
