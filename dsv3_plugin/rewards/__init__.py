"""What an answer is worth, by rules: verdicts on answers, each a number or the reason for none."""
