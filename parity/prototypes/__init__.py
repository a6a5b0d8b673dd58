"""What is known of the two prototypes, and nothing that another pair would need."""
