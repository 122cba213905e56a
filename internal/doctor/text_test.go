package doctor_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fastpubsub/fastpubsub/internal/doctor"
)

func TestText(t *testing.T) {
	t.Parallel()
	report := doctor.Report{Severity: doctor.Error, Schema: "s", TookSeconds: 1.25, Findings: []doctor.Finding{
		{Check: "a", Summary: "fine"},
		{Check: "b", Severity: doctor.Warning, Summary: "a name\nwith \x1b[31mcolour", Remedy: "SELECT 1;"},
		{Check: "b", Severity: doctor.Warning, Summary: "again"},
		{Check: "c", Severity: doctor.Error, Summary: "bad"},
	}}
	var got strings.Builder
	if err := report.WriteText(&got); err != nil {
		t.Fatal(err)
	}
	const want = `ok       a              fine
warning  b              a name with  [31mcolour
                        -> SELECT 1;
warning  b              again
error    c              bad

1 error, 2 warnings (schema s, 1.2 s)
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got.Reset()
	if err := (&doctor.Report{Schema: "s"}).WriteText(&got); err != nil || got.String() != "\nnothing to mend (schema s, 0.0 s)\n" {
		t.Errorf("%q, %v", got.String(), err)
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ got, want string }{
		{doctor.Count(0), "0"},
		{doctor.Count(999), "999"},
		{doctor.Count(1000), "1,000"},
		{doctor.Count(-1234567), "-1,234,567"},
		{doctor.Size(0), "0 B"},
		{doctor.Size(1023), "1023 B"},
		{doctor.Size(8192), "8.0 KiB"},
		{doctor.Size(200 << 20), "200 MiB"},
		{doctor.Size(3 << 40), "3.0 TiB"},
		{doctor.Size(5000 << 40), "5000 TiB"},
		{doctor.Span(0), "0 ms"},
		{doctor.Span(math.MinInt64), "-106752 days"},
		{doctor.Span(1234 * time.Microsecond), "1.2 ms"},
		{doctor.Span(400 * time.Millisecond), "400 ms"},
		{doctor.Span(9400 * time.Millisecond), "9.4 s"},
		{doctor.Span(time.Minute), "60 s"},
		{doctor.Span(5 * time.Minute), "5 min"},
		{doctor.Span(3 * time.Hour), "3 h"},
		{doctor.Span(72 * time.Hour), "3 days"},
		{doctor.Span(-time.Minute), "-60 s"},
	} {
		if test.got != test.want {
			t.Errorf("%q, want %q", test.got, test.want)
		}
	}
}
