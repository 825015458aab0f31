package stamp

import (
	"math"
	"testing"
	"time"
)

const (
	history = "2006-01-02T15:04:05.000-0700"
	json    = "2006-01-02T15:04:05.000000000Z"
	syslog  = "Jan _2 15:04:05"
)

func TestAppend(t *testing.T) {
	west := time.FixedZone("", -3*3600-1800)
	at := time.Date(2026, 7, 1, 2, 8, 2, 7_045_600, time.UTC)
	tests := map[string]struct {
		layout string
		zone   *time.Location
		at     time.Time
		want   string
	}{
		"history":                  {history, west, at, "2026-06-30T22:38:02.007-0330"},
		"nanoseconds":              {json, time.UTC, at, "2026-07-01T02:08:02.007045600Z"},
		"no fraction":              {syslog, time.UTC, at, "Jul  1 02:08:02"},
		"before 1970":              {json, time.UTC, time.Unix(-1, 1), "1969-12-31T23:59:59.000000001Z"},
		"a fraction is cut":        {history, time.UTC, time.Unix(0, 999_999_999), "1970-01-01T00:00:00.999+0000"},
		"a year too far ahead":     {json, time.UTC, time.Unix(math.MaxInt64/2, 5), "9999-12-31T23:59:59.000000005Z"},
		"a year before the first":  {json, time.UTC, time.Unix(math.MinInt64/2, 5), "0000-01-01T00:00:00.000000005Z"},
		"the zero time has a year": {json, time.UTC, time.Time{}, "0001-01-01T00:00:00.000000000Z"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := New(test.layout, test.zone)
			for range 2 { // formatted, then remembered
				if got := string(f.Append([]byte("x"), test.at)); got != "x"+test.want {
					t.Errorf("Append = %q, want %q", got, "x"+test.want)
				}
			}
		})
	}
}

// A zone's offset may change from one second to the next.
func TestAppendFollowsTheZone(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	f := New(history, zone)
	for at, want := range map[time.Time]string{
		time.Date(2026, 10, 25, 0, 59, 59, 0, time.UTC): "2026-10-25T02:59:59.000+0200",
		time.Date(2026, 10, 25, 1, 0, 0, 0, time.UTC):   "2026-10-25T02:00:00.000+0100",
	} {
		if got := string(f.Append(nil, at)); got != want {
			t.Errorf("Append(%v) = %s, want %s", at, got, want)
		}
	}
}

func FuzzAppend(f *testing.F) {
	f.Add(int64(1782898682), int64(123456789))
	f.Fuzz(func(t *testing.T, sec, nsec int64) {
		at := time.Unix(sec, nsec)
		got := string(New(json, time.UTC).Append(nil, at))
		if utc := at.UTC(); utc.Year() < 0 || utc.Year() > 9999 {
			if len(got) != len(json) {
				t.Fatalf("Append(%v) = %q, want %d bytes", at, got, len(json))
			}
		} else if want := utc.Format(json); got != want {
			t.Fatalf("Append(%v) = %q, want %q", at, got, want)
		}
	})
}
