"""Half precision in the file: which nodes compute in it, what stays in fp32 and why, and the casts between them."""
