"""What models are made of; each layer knows its rank's slice."""
