"""What goes wrong in a run, in words for the person who deploys."""

import re
from collections.abc import Mapping

from django.core.management.base import CommandError

# Of the files that failed for one reason, so many are named, or else one.
_NAMED = 10
# Of a URL, the path names a file and may be signed, and a user is a secret.
_PATH = '(https?://[^/ "]+)/[^ "]*'
_USER = '(?<=://)[^/ "@]*@'
# The limit of this process, in the words of the operating system.
TOO_MANY_FILES = "(?i)too many open files"
# What to look at, by what is in an error's text.
_ADVICE = {
    r"\(AccessControlListNotSupported\)": (
        "(The bucket has ACLs disabled: set the option default_acl to None.)"
    ),
    r"\(AccessDenied\) when calling the PutObject": (
        "(Grant s3:PutObject, and s3:PutObjectAcl if default_acl is set.)"
    ),
    r"\(AccessDenied\) when calling the Delete": (
        "(Grant the permission s3:DeleteObject.)"
    ),
    r"\(AccessDenied\) when calling the List": "(Grant the permission s3:ListBucket.)",
    "(?i)SSL validation failed.*(wrong.version|unknown.proto|record.layer|http.req)": (
        "(The server may use HTTP instead of HTTPS: check endpoint_url.)"
    ),
    TOO_MANY_FILES: (
        "(Increase the limit of open files, or decrease collectfast_threads.)"
    ),
    r"\(NoSuchKey\) when calling the List": (
        "(If the host in endpoint_url contains the bucket name, remove it there.)"
    ),
    "SSL validation failed.*(?i:certificate|hostname|no such file)": (
        "(If a private CA issued the certificate, set the option verify or the "
        "environment variable AWS_CA_BUNDLE to the path of its CA file.)"
    ),
    "Parameter valid(?!(?s:.*)bucket name)": "(Check the option object_parameters.)",
    # A redirection to nowhere botocore follows as deep as it can.
    r"\((|[1-4]\d\d)\) when calling|recursion": (
        "(The response gives no reason. Check credentials, region_name, endpoint_url, "
        "proxies, and permissions such as s3:ListBucket and s3:GetObject.)"
    ),
}


class CollectfastError(CommandError):
    """A run that did not do all that it was asked to.

    As a `CommandError`, it is a message without a traceback, and exit status 1:
    https://docs.djangoproject.com/en/stable/howto/custom-management-commands/#command-exceptions
    """


class BucketError(CollectfastError):
    """The bucket as a whole could not be used; no file was the reason."""

    def __init__(self, bucket_name: str, cause: BaseException) -> None:
        self.cause = cause
        reason = reason_of(cause)
        super().__init__(f"Cannot use bucket {bucket_name!r}: {reason}")


class DeniedError(BucketError):
    """The bucket may not be asked what it holds, or does not know the question."""


class ClearError(CollectfastError):
    """`--clear` would delete what others have stored."""

    def __init__(self, bucket: str, reason: str) -> None:
        super().__init__(
            f"--clear would delete more than static files from bucket {bucket!r}: "
            f"{reason}. Set the option location of the static files storage to a "
            "separate folder. (The setting AWS_LOCATION applies to all storages.)"
        )


class FilesError(CollectfastError):
    """Some files failed; `failures` maps their names to an exception or a text."""

    summary = "Failed for {count}"

    def __init__(self, failures: Mapping[str, object], tried_all: bool = True) -> None:
        self.failures = dict(failures)
        names: dict[str, list[str]] = {}
        for name, failure in failures.items():
            names.setdefault(reason_of(failure), []).append(name)
        lines = [self.summary.format(count=_counted(len(failures)))]
        lines[0] += ":" if tried_all else "; the other files were not tried:"
        for reason, alike in names.items():
            if len(alike) <= _NAMED:
                lines += [f"  {printable(name)}: {reason}" for name in alike]
            else:
                example = printable(alike[0])
                lines.append(
                    f"  {_counted(len(alike))}, for example {example}: {reason}"
                )
        super().__init__("\n".join(lines))


class UploadError(FilesError):
    """Some files did not arrive in the bucket."""

    summary = "Could not upload {count}"


class DeleteError(FilesError):
    """Some objects could not be deleted from the bucket."""

    summary = "Could not delete {count} from the bucket"


def reason_of(failure: object) -> str:
    """Return the text of `failure`, without secrets, and with what may help."""
    # http.client quotes the header that it refuses to send, such as a signature with an
    # access key in it that ends with a line break.
    text, refused, _ = _text_of(failure).partition("Invalid header value ")
    remedy = "Invalid header value. Check the credentials for a line break."
    text = re.sub(_PATH, r"\1/…", re.sub(_USER, "", text))
    text = printable(text.replace("\n", " "))
    advice = [each for words, each in _ADVICE.items() if re.search(words, text)]
    return f"{text}{remedy}" if refused else " ".join([text, *advice])


def _text_of(failure: object) -> str:
    """Return the text of `failure`, or a reason that botocore does not show."""
    is_limit = re.search(TOO_MANY_FILES, str(inner_error(failure)))
    return is_limit[0] if is_limit else str(failure)


def inner_error(failure: object) -> object:
    """Return the error that botocore's `failure` was made of, or an empty text."""
    # https://github.com/boto/botocore/blob/develop/botocore/exceptions.py
    return getattr(failure, "kwargs", {}).get("error", "")


def printable(text: str) -> str:
    """Return `text` with control characters escaped, as Python escapes them."""
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(escaped)


def _counted(files: int) -> str:
    return "1 file" if files == 1 else f"{files:,} files"
