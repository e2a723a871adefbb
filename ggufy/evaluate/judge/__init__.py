"""Another model that grades answers: the client, what it is asked, and what its grades say."""
