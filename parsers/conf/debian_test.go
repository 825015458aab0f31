package conf

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseDebianDefaults(t *testing.T) {
	tests := map[string]struct {
		text string
		want string
	}{
		"the package's":    {"# Modes\nTCP_MODE=\"tcp\"\nUDP_MODE=\"udp\"\n", "tcp udp"},
		"sniffing":         {"UDP_MODE=sudp\nTCP_MODE='stcp'\n", "stcp sudp"},
		"advanced":         {"TCP_MODE=\"atcp\"\nUDP_MODE=\"audp\"", "atcp audp"},
		"one protocol":     {"TCP_MODE=\"\"\nUDP_MODE=\"udp\"\n", "udp"},
		"nothing assigned": {"TCP_MODE=stcp\nUDP_MODE=\n", "stcp"},
		"not mentioned":    {"TCP_MODE=stcp\n", "stcp"},
		"comments":         {"TCP_MODE=stcp # quiet\nUDP_MODE=\"udp\"\t# loud\n", "stcp udp"},
		"the last counts":  {"TCP_MODE=stcp\nTCP_MODE=tcp\n", "tcp"},
		"carriage returns": {"TCP_MODE=\"tcp\"\r\n\r\nUDP_MODE=udp\r\n", "tcp udp"},
		"indented":         {"  TCP_MODE=tcp\n", "tcp"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			words, warnings, err := parseDebianDefaults("defaults", []byte(tt.text))
			if err != nil || len(warnings) > 0 {
				t.Fatalf("%q: %v, warnings %v", tt.text, err, warnings)
			}
			if got := joinWords(words); got != tt.want {
				t.Errorf("%q chooses %q, want %q", tt.text, got, tt.want)
			}
		})
	}
}

// TestParseDebianDefaultsFaults has what a shell would carry out, too.
func TestParseDebianDefaultsFaults(t *testing.T) {
	const tcp = "use tcp, stcp or atcp, or nothing"
	tests := map[string]struct {
		text string
		want string
	}{
		"empty":             {"", "defaults: starts nothing; set TCP_MODE or UDP_MODE"},
		"both empty":        {"TCP_MODE=\"\"\nUDP_MODE=''\n", "defaults: starts nothing; set TCP_MODE or UDP_MODE"},
		"other protocol":    {"TCP_MODE=udp\n", `defaults:1: TCP_MODE: "udp" is no mode for TCP; ` + tcp},
		"upper case":        {"UDP_MODE=SUDP\n", `defaults:1: UDP_MODE: "SUDP" is no mode for UDP; use udp, sudp or audp, or nothing`},
		"command":           {"TCP_MODE=$(touch /tmp/x)\n", `defaults:1: TCP_MODE: "$(touch /tmp/x)" is no plain word; ` + tcp},
		"quoted command":    {"TCP_MODE=\"`id`\"\n", "defaults:1: TCP_MODE: \"\\\"`id`\\\"\" is no plain word; " + tcp},
		"second command":    {"TCP_MODE=tcp; id\n", `defaults:1: TCP_MODE: "tcp; id" is no plain word; ` + tcp},
		"environment":       {"TCP_MODE=tcp id\n", `defaults:1: TCP_MODE: "tcp id" is no plain word; ` + tcp},
		"variable":          {"TCP_MODE=\"$MODE\"\n", `defaults:1: TCP_MODE: "\"$MODE\"" is no plain word; ` + tcp},
		"quotes within":     {"TCP_MODE=t\"c\"p\n", `defaults:1: TCP_MODE: "t\"c\"p" is no plain word; ` + tcp},
		"no end quote":      {"TCP_MODE=\"tcp\n", `defaults:1: TCP_MODE: "\"tcp" is no plain word; ` + tcp},
		"blank before word": {"TCP_MODE= tcp\n", `defaults:1: TCP_MODE: " tcp" is no plain word; ` + tcp},
		"no comment":        {"TCP_MODE=tcp#x\n", `defaults:1: TCP_MODE: "tcp#x" is no plain word; ` + tcp},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, err := parseDebianDefaults("defaults", []byte(tt.text))
			if err == nil || err.Error() != tt.want {
				t.Errorf("%q: %v, want %s", tt.text, err, tt.want)
			}
		})
	}
}

func TestParseDebianDefaultsPassesOver(t *testing.T) {
	text := "if true; then\nTCP_MODE=tcp\nfi\nTCP_MODE = stcp\nexport UDP_MODE=udp\n"
	words, warnings, err := parseDebianDefaults("defaults", []byte(text))
	if got := joinWords(words); got != "tcp" || err != nil {
		t.Fatalf("modes %q and %v, want tcp", got, err)
	}
	var lines []int
	for _, w := range warnings {
		lines = append(lines, w.Line)
	}
	if want := []int{1, 3, 4, 5}; !slices.Equal(lines, want) {
		t.Errorf("warnings about lines %v, want %v:\n%v", lines, want, warnings)
	}
}

func TestLoadDebianDefaultsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portsentry")
	_, _, err := LoadDebianDefaults(path)
	if want := path + ": open: no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("LoadDebianDefaults = %v, want %s", err, want)
	}
}

func FuzzDebianDefaults(f *testing.F) {
	for _, seed := range []string{"", "TCP_MODE=\"tcp\"\nUDP_MODE='sudp' # x\n", "TCP_MODE=$(id)\n", "TCP_MODE=\"", "=\n", "UDP_MODE=#"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		words, _, err := parseDebianDefaults("defaults", text)
		if err != nil {
			return
		}
		if err := checkModeWords(words); err != nil {
			t.Fatalf("%q chooses %v: %v", text, words, err)
		}
	})
}

func joinWords(words []ModeWord) string {
	var s []string
	for _, word := range words {
		s = append(s, string(word))
	}
	return strings.Join(s, " ")
}
