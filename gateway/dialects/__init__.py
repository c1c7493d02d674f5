"""Other APIs than chat completions on the same pipeline: each dialect is a front that speaks chat inwards."""
