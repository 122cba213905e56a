package doctor

// What text is made of.
var (
	Count = count[int64]
	Size  = size
	Span  = span
)
