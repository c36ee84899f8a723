"""What may go in and come out: safety, personal data, keywords, topics."""
