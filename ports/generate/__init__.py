"""From conversations to training records: chat families, loss masks, the verifier's hidden states, files."""
