"""What a person is told without a traceback; all else that is raised is a bug."""


class InputError(Exception):
  """Something the user gave is wrong: a file, an annotation, a config value.

  The message names the file, the image and the value. `main` prints it without
  a traceback and exits with status 2; everything else that is raised is a bug.
  """


class NonFiniteLossError(Exception):
  """The loss became NaN or infinite; the last good checkpoint is kept. Exit status 1."""


class ExportError(Exception):
  """An exported file does not say what the network says; it is not kept. Exit status 1."""


class PartlyDoneError(Exception):
  """Most of the work is done, but some of the input was broken: the message lists it.

  `main` prints it without a traceback and exits with status 3.
  """
