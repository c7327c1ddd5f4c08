"""A network explained to a student: its blocks, where the cost sits and why, its knobs and ideas. No torch.

`parts`, `facts` and `ideas` find what there is to say, `terminal` and `page` say it by way of `words` and `steps`.
"""
