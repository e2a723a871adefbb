"""What trains: a file each."""
