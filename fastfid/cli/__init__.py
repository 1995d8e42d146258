"""The command line: arguments, what each command does, and the frame it shares with sit_rl's commands."""
