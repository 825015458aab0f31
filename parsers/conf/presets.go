package conf

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// presetPrefix precedes the name of a preset in a native list of ports.
const presetPrefix = "preset:"

// A preset is a named set of trap ports.
type preset struct{ tcp, udp string }

// presets are the sets by name. docs/ports.md explains the choice of modern; the
// others are those between which PortSentry's configuration file lets one choose.
var presets = map[string]preset{
	"modern": {
		tcp: "1,7,9,11,15,17,19,23,79,102,502,512,513,540,789,1080,1524,1911,2323,2375,2404,4786,5555,8291,8545,8728,9530,12345,31337",
		udp: "11,13,17,19,623,1604,5683,9600,11211,17185,30718,31337",
	},
	"everything": {
		tcp: "1,7,9,11,15,70,79,80,109,110,111,119,138,139,143,512,513,514,515,540,635,1080,1524,2000,2001,4000,4001,5742,6000,6001," +
			"6667,12345,12346,20034,30303,32771,32772,32773,32774,31337,40421,40425,49724,54320",
		udp: "1,7,9,66,67,68,69,111,137,138,161,162,474,513,517,518,635,640,641,666,700,2049,32770,32771,32772,32773,32774,31337,54321",
	},
	"aware": {
		tcp: "1,11,15,79,111,119,143,540,635,1080,1524,2000,5742,6667,12345,12346,20034,31337,32771,32772,32773,32774,40421,49724,54320",
		udp: "1,7,9,69,161,162,513,635,640,641,700,32770,32771,32772,32773,32774,31337,54321",
	},
	"bare-bones": {
		tcp: "1,11,15,110,111,143,540,635,1080,1524,2000,12345,12346,20034,32771,32772,32773,32774,49724,54320",
		udp: "1,7,9,69,161,162,513,640,700,32770,32771,32772,32773,32774,31337,54321",
	},
}

// parseNativePorts reads a list of ports over proto in the grammar of
// parsePorts, in which "preset:NAME" stands for the ports of a preset.
func parseNativePorts(s string, proto detector.Proto) (detector.PortSet, Faults) {
	return parsePortTokens(s, func(token string) ([]detector.PortRange, *Fault) {
		name, isPreset := strings.CutPrefix(strings.TrimPrefix(token, " "), presetPrefix)
		if !isPreset {
			return parsePortToken(token)
		}
		p, known := presets[name]
		if !known {
			names := strings.Join(slices.Sorted(maps.Keys(presets)), ", ")
			return nil, &Fault{Text: strconv.Quote(name) + " is no preset; known are " + names}
		}
		return p.ranges(proto), nil
	})
}

// ranges returns the ports of a preset over proto.
func (p preset) ranges(proto detector.Proto) []detector.PortRange {
	list := p.tcp
	if proto == detector.UDP {
		list = p.udp
	}
	set, _ := parsePorts(list) // a test reads every preset
	return set.Ranges()
}
