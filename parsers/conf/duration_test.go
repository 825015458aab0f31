package conf

import (
	"errors"
	"testing"
	"time"

	"github.com/portsnare/portsnare/detector"
)

func TestParseDuration(t *testing.T) {
	tests := map[string]struct {
		in    string
		want  time.Duration
		wants string // what FormatDuration makes of it
	}{
		"Go's units":        {"1h30m", 90 * time.Minute, "1h30m"},
		"a fraction":        {"1.5h", 90 * time.Minute, "1h30m"},
		"parts of a second": {"1500ms", 1500 * time.Millisecond, "1.5s"},
		"nothing":           {"0s", 0, "0s"},
		"nothing, no unit":  {"0", 0, "0s"},
		"days":              {"7d", 7 * 24 * time.Hour, "7d"},
		"weeks":             {"2w", 14 * 24 * time.Hour, "14d"},
		"all units":         {"1w2d3h4m5s", 219*time.Hour + 4*time.Minute + 5*time.Second, "9d3h4m5s"},
		"hours only":        {"24h", 24 * time.Hour, "1d"},
		"hours and seconds": {"1h5s", time.Hour + 5*time.Second, "1h0m5s"},
		"ten minutes":       {"10m", 10 * time.Minute, "10m"},
		"ten hours":         {"10h", 10 * time.Hour, "10h"},
		"ten years":         {"3650d", 3650 * 24 * time.Hour, "3650d"},
		"no end":            {"forever", detector.Forever, "forever"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseDuration(tt.in)
			if err != nil || got != tt.want {
				t.Fatalf("ParseDuration(%q) = %v, %v, want %v", tt.in, got, err, tt.want)
			}
			if text := FormatDuration(got); text != tt.wants {
				t.Errorf("FormatDuration(%v) = %q, want %q", got, text, tt.wants)
			}
		})
	}
}

func TestParseDurationFaults(t *testing.T) {
	tests := map[string]struct {
		in   string
		want error
	}{
		"empty":                {"", errNoDuration},
		"no unit":              {"7", errNoDuration},
		"no number":            {"d", errNoDuration},
		"a word":               {"a day", errNoDuration},
		"a sign":               {"-1h", errNoDuration},
		"a sign inside":        {"1d-1h", errNoDuration},
		"days before weeks":    {"1d1w", errNoDuration},
		"days after hours":     {"1h1d", errNoDuration},
		"days twice":           {"1d1d", errNoDuration},
		"half a day":           {"0.5d", errNoDuration},
		"a second too long":    {"3650d1s", errTooLong},
		"hours too long":       {"87601h", errTooLong},
		"too many weeks":       {"65535w", errTooLong},
		"days beyond reason":   {"99999999999999999999d", errTooLong},
		"hours beyond reason":  {"3650d2500000h", errTooLong},
		"both far too long":    {"65535w65535d", errTooLong},
		"an end for what ends": {"forever1s", errNoDuration},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := ParseDuration(tt.in); !errors.Is(err, tt.want) {
				t.Errorf("ParseDuration(%q) = %v, %v, want %v", tt.in, got, err, tt.want)
			}
		})
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"1w2d3h4m5.678s", "1µs", "forever", "3650d", "65535w", "0", "-1h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if d < 0 || d > maxDuration && d != detector.Forever {
			t.Fatalf("ParseDuration(%q) = %v, out of range", s, d)
		}
		text := FormatDuration(d)
		if again, err := ParseDuration(text); err != nil || again != d {
			t.Fatalf("%q -> %v -> %q -> %v, %v", s, d, text, again, err)
		}
	})
}
