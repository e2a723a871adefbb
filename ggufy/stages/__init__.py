"""The stages of the pipeline: each checks its inputs, calls the engine that does the work, and reuses what is made."""
