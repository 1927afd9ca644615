"""What must be asked before any number is believed; the audit and the shift both ask it."""
