"""Read a PEFT adapter: its configuration, and the changes it makes to the base."""
