"""The parts of `fastscore.reader`: what a callable can see, a record of one call, what that means."""
