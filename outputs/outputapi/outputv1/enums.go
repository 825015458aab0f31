package outputv1

import (
	"slices"

	"github.com/portsnare/portsnare/detector"
)

// The protocol's value for each of the detector's. What is in no table travels
// as 0, which every enum has for unknown.
var (
	actions = []Action{
		detector.ScanDetected:   Action_ACTION_SCAN_DETECTED,
		detector.ScanIgnored:    Action_ACTION_SCAN_IGNORED,
		detector.PacketsLost:    Action_ACTION_PACKETS_LOST,
		detector.DaemonStarted:  Action_ACTION_DAEMON_STARTED,
		detector.DaemonStopped:  Action_ACTION_DAEMON_STOPPED,
		detector.ConfigReloaded: Action_ACTION_CONFIG_RELOADED,
		detector.ServiceReached: Action_ACTION_SERVICE_REACHED,
		detector.AcceptFailed:   Action_ACTION_ACCEPT_FAILED,
		detector.BanBegan:       Action_ACTION_BAN_BEGAN,
		detector.BanEnded:       Action_ACTION_BAN_ENDED,
	}
	actKinds = []ActKind{
		detector.ActRoute:     ActKind_ACT_KIND_ROUTE,
		detector.ActHostsDeny: ActKind_ACT_KIND_HOSTS_DENY,
		detector.ActCommand:   ActKind_ACT_KIND_COMMAND,
	}
	evidences = []Evidence{
		detector.Forgeable:  Evidence_EVIDENCE_FORGEABLE,
		detector.Pattern:    Evidence_EVIDENCE_PATTERN,
		detector.Proven:     Evidence_EVIDENCE_PROVEN,
		detector.ProvenTrap: Evidence_EVIDENCE_PROVEN_TRAP,
	}
	tris = []Tri{
		detector.Unset: Tri_TRI_UNSET,
		detector.False: Tri_TRI_FALSE,
		detector.True:  Tri_TRI_TRUE,
	}
	techniques = []Technique{
		detector.TechniqueUnknown:  Technique_TECHNIQUE_UNKNOWN,
		detector.TechniqueConnect:  Technique_TECHNIQUE_CONNECT,
		detector.TechniqueSYN:      Technique_TECHNIQUE_SYN,
		detector.TechniqueFIN:      Technique_TECHNIQUE_FIN,
		detector.TechniqueNULL:     Technique_TECHNIQUE_NULL,
		detector.TechniqueXMAS:     Technique_TECHNIQUE_XMAS,
		detector.TechniqueOddFlags: Technique_TECHNIQUE_ODD_FLAGS,
		detector.TechniqueUDP:      Technique_TECHNIQUE_UDP,
	}
	proofs = []Proof{
		detector.ProofNone:      Proof_PROOF_NONE,
		detector.ProofHandshake: Proof_PROOF_HANDSHAKE,
	}
)

// toWire returns the protocol's value for v, 0 if there is none.
func toWire[W ~int32, V ~uint8](table []W, v V) W {
	if int(v) < len(table) {
		return table[v]
	}
	return 0
}

// fromWire returns the detector's value for w, and whether there is one. The
// value is 0 if there is none: of each enum that may be unknown, 0 is the value
// that claims least.
func fromWire[V ~uint8, W ~int32](table []W, w W) (V, bool) {
	i := slices.Index(table, w)
	if i < 0 {
		return 0, false
	}
	return V(i), true
}
