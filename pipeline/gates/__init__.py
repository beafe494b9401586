"""From a report's measurements to released, refused or undecided: rules, their statistics, and judging again."""
