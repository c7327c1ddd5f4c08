"""What a network is trained to do: one file per task, with its loss, its metrics and its decoding."""
