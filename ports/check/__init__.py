"""From the files of a draft to served tokens: is it what was trained, and is it worth serving?"""
