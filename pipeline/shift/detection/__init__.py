"""How far two domains are apart, and how sure that is."""
