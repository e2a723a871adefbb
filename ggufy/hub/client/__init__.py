"""The client of the Hub: requests, uploads, downloads, access checks."""
