"""What answers say: sections built once a fact, which terminal and PDF both show."""
