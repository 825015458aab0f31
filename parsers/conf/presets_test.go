package conf

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

func TestParseNativePorts(t *testing.T) {
	tests := map[string]struct {
		in   string
		want string // over UDP
	}{
		"a preset":         {"preset:bare-bones", "1,7,9,69,161-162,513,640,700,31337,32770-32774,54321"},
		"ports besides it": {"2,preset:bare-bones, 3-4", "1-4,7,9,69,161-162,513,640,700,31337,32770-32774,54321"},
		"after a blank":    {"2, preset:bare-bones", "1-2,7,9,69,161-162,513,640,700,31337,32770-32774,54321"},
		"two presets":      {"preset:bare-bones,preset:aware", "1,7,9,69,161-162,513,635,640-641,700,31337,32770-32774,54321"},
		"no preset":        {"1,7", "1,7"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, faults := parseNativePorts(tt.in, detector.UDP)
			if len(faults) > 0 || got.String() != tt.want {
				t.Errorf("parseNativePorts(%q) = %v, %v, want %v", tt.in, got, faults, tt.want)
			}
		})
	}
}

func TestParseNativePortsFaults(t *testing.T) {
	const known = " is no preset; known are aware, bare-bones, everything, modern"
	tests := map[string]struct {
		in   string
		want string
	}{
		"unknown":    {"1,preset:all", `"all"` + known},
		"no name":    {"preset:", `""` + known},
		"upper case": {"preset:Modern", `"Modern"` + known},
		"no colon":   {"modern", `port "modern": not a number from 1 to 65535`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, faults := parseNativePorts(tt.in, detector.TCP)
			if len(faults) != 1 || faults[0].Text != tt.want {
				t.Errorf("parseNativePorts(%q): %v, want %s", tt.in, faults, tt.want)
			}
		})
	}
}

// TestPresetsAreNative makes sure that PortSentry's files have no presets: a
// file in that form works with PortSentry too.
func TestPresetsAreNative(t *testing.T) {
	if _, _, err := parse("p.conf", []byte("TCP_PORTS=\"preset:modern\"\n")); err == nil {
		t.Error("a PortSentry file may name a preset")
	}
}

// TestPresetsDocumented makes sure that docs/ports.md lists the ports of every
// preset, in the order of the preset.
func TestPresetsDocumented(t *testing.T) {
	manual := string(read(t, "../../docs/ports.md"))
	documented := map[string]preset{"modern": {
		tcp: tablePorts(section(manual, "### TCP")),
		udp: tablePorts(section(manual, "### UDP")),
	}}
	for _, name := range []string{"everything", "aware", "bare-bones"} {
		text := section(manual, "### "+name)
		documented[name] = preset{tcp: after(text, "    TCP "), udp: after(text, "    UDP ")}
	}
	if diff := cmp.Diff(presets, documented, cmp.AllowUnexported(preset{})); diff != "" {
		t.Errorf("presets (-program +docs/ports.md):\n%s", diff)
	}
	for name, p := range presets {
		for _, list := range []string{p.tcp, p.udp} {
			if _, faults := parsePorts(list); len(faults) > 0 {
				t.Errorf("preset %s: %v", name, faults)
			}
		}
	}
}

// TestPresetListedInDefault makes sure that the comments of the embedded
// configuration name the ports of its preset.
func TestPresetListedInDefault(t *testing.T) {
	comments := strings.NewReplacer("\n# ", " ", "\n", " ").Replace(DefaultNative()) + " "
	for _, list := range []string{presets["modern"].tcp, presets["modern"].udp} {
		if want := " " + strings.ReplaceAll(list, ",", " ") + " "; !strings.Contains(comments, want) {
			t.Errorf("default.toml does not list%s", want)
		}
	}
}

// section returns what follows a heading, up to the next one.
func section(text, heading string) string {
	_, text, _ = strings.Cut(text, "\n"+heading+"\n")
	text, _, _ = strings.Cut(text, "\n#")
	return text
}

// tablePorts returns the first column of a table as a list.
func tablePorts(text string) string {
	var ports []string
	for _, row := range regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllStringSubmatch(text, -1) {
		ports = append(ports, row[1])
	}
	return strings.Join(ports, ",")
}

// after returns the rest of the line that starts with prefix.
func after(text, prefix string) string {
	_, rest, _ := strings.Cut("\n"+text, "\n"+prefix)
	rest, _, _ = strings.Cut(rest, "\n")
	return rest
}
