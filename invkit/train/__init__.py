"""The loop that trains weights, and what belongs to it: state, schedules, running averages, augmentation."""
