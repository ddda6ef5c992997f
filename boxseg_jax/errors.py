"""What a person is told without a traceback; all else that is raised is a bug."""

import re

# A file's names and values are part of messages, and could steer the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class ToldError(Exception):
  """`main` prints the message alone and exits with `status`; control characters are spelt out."""

  status = 1

  def __init__(self, message: object = ""):
    super().__init__(_CONTROL.sub(lambda one: repr(one.group())[1:-1], str(message)))


class InputError(ToldError):
  """Something the user gave is wrong: a file, an annotation, a config value.

  The message names the file, the image and the value.
  """

  status = 2


class WriteError(InputError):
  """A file cannot be written: the disk is full, or the folder is not to be written to."""


class OutOfMemoryError(ToldError):
  """A device or the host has too little memory; the message says what to lower."""


class NonFiniteLossError(ToldError):
  """The loss became NaN or infinite; the last good checkpoint is kept."""


class ExportError(ToldError):
  """An exported file does not say what the network says; it is not kept."""


class LostProcessError(ToldError):
  """Another process of the job has died or cannot be reached."""


class PartlyDoneError(ToldError):
  """Most of the work is done, but some of the input was broken: the message lists it."""

  status = 3


class StoppedError(ToldError):
  """The run was told to stop, and has left a checkpoint to go on from: no failure."""

  status = 0
