"""What trains with an optimizer: recording, schedules by position, the learning rate finder, a loop, checkpoints.

Every piece works alone in a loop of one's own.
"""
