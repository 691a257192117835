"""A small cohort as its CSV says it, in months, its rows out of order."""

GOOD = """subjectid,imageid,visit_time,time,convert_status,age
b,b1,0,30,0,70
a,a2,6,24,1,
a,a1,0,24,1,65
c,c1,0,12,1,80
"""
