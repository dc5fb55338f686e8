# A host with a bridge as Docker makes them and a desk on it, and behind another link a machine that is file server, metadata, control plane and web.
mount --make-rprivate /
mount -t tmpfs none /run
ip netns add desk
ip netns add away
ip link set lo up
ip link add br-0123456789ab type bridge
ip addr add 10.9.0.1/24 dev br-0123456789ab
ip link set br-0123456789ab up
ip link add desk type veth peer name eth0 netns desk
ip link set desk master br-0123456789ab up
ip link add away type veth peer name eth0 netns away
ip addr add 10.8.0.1/24 dev away
ip link set away up
ip route add 169.254.169.254 dev away
ip -n desk addr add 10.9.0.2/24 dev eth0
ip -n away addr add 10.8.0.2/24 dev eth0
ip -n away addr add 169.254.169.254/32 dev eth0
ip -n desk link set eth0 up
ip -n away link set eth0 up
ip -n desk route add default via 10.9.0.1
ip -n away route add default via 10.8.0.1
echo 1 >/proc/sys/net/ipv4/ip_forward
iptables -N DOCKER-USER
iptables -A FORWARD -j DOCKER-USER

server='use IO::Socket::INET; @open = map { IO::Socket::INET->new(LocalPort => $_, Listen => 9) or die $! } @ARGV; sleep 60'
trap 'kill $(jobs -p)' EXIT
perl -e "$server" 22 >/dev/null &
ip netns exec away perl -e "$server" 2049 80 7301 443 >/dev/null &
ip netns exec desk perl -e "$server" 8080 >/dev/null &

connects() { timeout 2 bash -c "</dev/tcp/$1/$2" 2>/dev/null; }
from_desk() { ip netns exec desk timeout 2 bash -c "</dev/tcp/$1/$2" 2>/dev/null; }
reached() {
  local told=()
  if from_desk 10.8.0.2 2049; then told+=(share); fi
  if from_desk 169.254.169.254 80; then told+=(metadata); fi
  if from_desk 10.9.0.1 22; then told+=(host); fi
  if from_desk 10.8.0.2 7301; then told+=(agents); fi
  if from_desk 10.8.0.2 443; then told+=(web); fi
  # By the agent, and whoever opens it on the host.
  if connects 10.9.0.2 8080; then told+=(editor); fi
  echo "${told[*]}"
}

# Each opens its ports in the order given.
for _ in {1..100}; do
  if connects 127.0.0.1 22 && connects 10.8.0.2 443 && connects 10.9.0.2 8080; then break; fi
  sleep 0.1
done
reached
RULES
reached
