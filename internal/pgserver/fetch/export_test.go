package fetch

// From is Fetch from a repository at another address.
var From = fetchFrom
