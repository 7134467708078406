"""The same work on the executors of a Spark cluster; needs the extra ``[spark]`` and Java."""
