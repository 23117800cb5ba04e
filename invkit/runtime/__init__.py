"""What a command stands on: its run and folder, processes, log, files, checkpoints."""
