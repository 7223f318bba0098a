"""What a fast exact trace lets one measure, and how biased samplers are: figures from recorded results."""
