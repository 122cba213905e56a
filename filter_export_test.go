package fastpubsub

// JSONPath lets the tests hand the compiled filter to the database.
func (f Filter) JSONPath() string { return f.jsonpath() }
