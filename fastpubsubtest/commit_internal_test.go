package fastpubsubtest

import "testing"

func TestAnswerEnds(t *testing.T) {
	t.Parallel()
	text := []byte("C\x00\x00\x00\x0bCOMMIT\x00" + "N\x00\x00\x00\x04" + "Z\x00\x00\x00\x05I")
	for first := range len(text) {
		for second := first; second < len(text); second++ {
			var a answer
			if a.ends(text[:first]) || a.ends(text[first:second]) {
				t.Fatalf("%q %q ends it", text[:first], text[first:second])
			}
			if !a.ends(text[second:]) {
				t.Fatalf("%q %q %q does not end it", text[:first], text[first:second], text[second:])
			}
		}
	}
}

func TestIsCommit(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"Q\x00\x00\x00\x0bcommit\x00":              true,
		"Q\x00\x00\x00\x0dCOMMIT; \x00":            true,
		"Q\x00\x00\x00\x0drollback\x00":            false,
		"Q\x00\x00\x00\x18commit prepared 'x'\x00": false,
		"Q\x00\x00\x00\x0bcommit\x00Q":             false,
		"P\x00\x00\x00\x0bcommit\x00":              false,
		"Q\x00\x00":                                false,
		"":                                         false,
	} {
		if isCommit([]byte(text)) != want {
			t.Errorf("isCommit(%q) is %v", text, !want)
		}
	}
}
