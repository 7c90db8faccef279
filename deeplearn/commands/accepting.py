"""The flags by which a command goes on with a run or a study that is not exactly what it was."""

from absl import flags

ACCEPT = flags.DEFINE_list(
    "accept",
    [],
    "go on although these parts of what the directory was made with differ, and record it: config, source, data, "
    "versions, implementations",
)
COPY = flags.DEFINE_bool(
    "execute_copy",
    False,
    "execute the copy of the experiment's source in the workdir, where the file changed or is gone; it is code of "
    "whoever made the directory",
)


def sections() -> tuple[str, ...]:
    """The sections that --accept names; UserError for one that does not exist."""
    from deeplearn import identity

    return identity.parse_accept(ACCEPT.value)
