"""The signals: https://docs.djangoproject.com/en/stable/topics/signals/."""

from django.dispatch import Signal

# Sent once at the end of a collectstatic, after all files are in the bucket, but not in
# a dry run. The sender is the storage's class, `storage` the storage, and `report` a
# `collectfast_storage.reporting.Report`. An exception of a receiver fails the command,
# because the receiver's work is a part of the deploy.
collected = Signal()
