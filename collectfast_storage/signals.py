"""What is sent: https://docs.djangoproject.com/en/stable/topics/signals/."""

from django.dispatch import Signal

# Sent once, when a collectstatic has come to its end and all is in the bucket; not for
# a dry run. The sender is the storage's class; `storage` is the storage, and `report` a
# `collectfast_storage.reporting.Report`. An exception that a receiver raises fails the
# command: what it was to do is part of the deploy.
collected = Signal()
