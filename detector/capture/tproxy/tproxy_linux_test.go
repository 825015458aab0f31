package tproxy

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// What a redirection does is tested with the traps that use it, in package
// capture.
func TestAnyPortSetFits(t *testing.T) {
	t.Parallel()
	var everySecond []detector.PortRange
	for port := 1; port <= 65535; port += 2 {
		everySecond = append(everySecond, detector.PortRange{First: uint16(port), Last: uint16(port)})
	}
	for name, ranges := range map[string][]detector.PortRange{
		"all":          {{First: 1, Last: 65535}},
		"one":          {{First: 80, Last: 80}},
		"the last":     {{First: 65535, Last: 65535}},
		"two ranges":   {{First: 1, Last: 1023}, {First: 61000, Last: 65534}},
		"none":         nil,
		"every second": everySecond,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, _ := nettest.NewPair(t)
			listener := Listener{Proto: detector.UDP, Addr: netip.MustParseAddrPort("127.0.0.1:9")}
			host.Do(t, func() {
				rules, err := Redirect(detector.PortSet{}, detector.NewPortSet(ranges...), []Listener{listener})
				if err != nil {
					t.Fatal(err)
				}
				defer rules.Close()
				if got := installed(t, host); !slices.Equal(got, ranges) {
					t.Errorf("%d ranges are in force, %v …; want %d", len(got), got[:min(len(got), 3)], len(ranges))
				}
			})
		})
	}
}

// installed reads the UDP ports back from the kernel.
func installed(t testing.TB, host *nettest.Host) (ranges []detector.PortRange) {
	t.Helper()
	var listing struct {
		Nftables []struct {
			Set struct{ Elem []json.RawMessage }
		}
	}
	text := host.Run(t, "nft", "-j", "list", "set", "inet", "portsnare_traps_udp_9", "udp_ports")
	if err := json.Unmarshal([]byte(text), &listing); err != nil {
		t.Fatal(err)
	}
	for _, object := range listing.Nftables {
		for _, element := range object.Set.Elem {
			var port uint16
			var interval struct{ Range [2]uint16 }
			if json.Unmarshal(element, &port) == nil {
				interval.Range = [2]uint16{port, port}
			} else if err := json.Unmarshal(element, &interval); err != nil {
				t.Fatal(err)
			}
			ranges = append(ranges, detector.PortRange{First: interval.Range[0], Last: interval.Range[1]})
		}
	}
	return ranges
}
