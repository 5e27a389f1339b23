"""What goes wrong in a run, in words for the person who deploys."""

from __future__ import annotations

from collections.abc import Mapping

from django.core.management.base import CommandError


class CollectfastError(CommandError):
    """A run that did not do all that it was asked to.

    It is a `CommandError`, so that ``manage.py`` prints the message without a
    traceback and exits with status 1:
    https://docs.djangoproject.com/en/stable/howto/custom-management-commands/#command-exceptions
    """


class BucketError(CollectfastError):
    """The bucket as a whole could not be used; no file was the reason."""

    def __init__(self, bucket_name: str, cause: BaseException) -> None:
        super().__init__(f"The bucket {bucket_name!r} cannot be used: {cause}")


class ClearError(CollectfastError):
    """`--clear` would empty a whole bucket."""

    def __init__(self, bucket_name: str) -> None:
        super().__init__(
            f"--clear would delete everything in the bucket {bucket_name!r}, whoever "
            "put it there: this storage has no location. Set its option location "
            "(setting AWS_LOCATION) to the folder that holds nothing but static files."
        )


class FilesError(CollectfastError):
    """Something failed for some of the files.

    `failures` maps the name of each file to what says why: an exception or a text.
    """

    summary = "Failed for {count}:"

    def __init__(self, failures: Mapping[str, object]) -> None:
        self.failures = dict(failures)
        count = "1 file" if len(failures) == 1 else f"{len(failures)} files"
        lines = [self.summary.format(count=count)]
        lines += [f"  {name}: {reason}" for name, reason in failures.items()]
        super().__init__("\n".join(lines))


class UploadError(FilesError):
    """Some files did not arrive in the bucket."""

    summary = "Could not upload {count}; the next run will try again:"


class DeleteError(FilesError):
    """Some objects could not be deleted from the bucket."""

    summary = "Could not delete {count} from the bucket:"
