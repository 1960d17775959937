"""Show results to people: the terminal, error messages, tables, plots and the page of a run.

Takes plain values (dicts, floats, strings) and imports neither torch nor the command line. Percent exists in this
package alone.
"""
