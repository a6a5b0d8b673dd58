"""Why another original differs: its formulas as the prototype's with named causes put in, one by one."""
