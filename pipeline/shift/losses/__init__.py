"""What a loss between two domains is made of, once the target's labels are known."""
